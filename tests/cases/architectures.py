"""The architectures that circuits are tested on, as changes of the tiny model's configuration."""

HOSTS = {
    "the_papers": {},
    "rms_rotary_gated": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "gated_mlp": True,
        "act_fn": "silu",
    },
    "grouped": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "attention_only": {"attn_only": True, "d_mlp": None},
    "windows": {"use_local_attn": True, "attn_types": ["local", "global"], "window_size": 3},
    "no_norm": {"normalization_type": None},
}
