"""How well does a sparse autoencoder read what an MLP writes, and with how few latents?"""
