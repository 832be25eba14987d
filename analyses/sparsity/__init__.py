"""How sparse are a model's weights and activations, by the published number and by ones that mean something?"""
