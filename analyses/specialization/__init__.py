"""What single units are selective for, beyond what their sparsity alone would make of them."""
