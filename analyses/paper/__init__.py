"""The paper's table and claims, as published and as three seeds, intervals and sound measures show them."""
