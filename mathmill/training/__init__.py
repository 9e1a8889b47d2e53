"""Supervised fine-tuning on megatron-core, from Hugging Face weights and back.

Inside a foreign container this room imports only torch, megatron-core, safetensors, tokenizers and the standard library;
what a launch needs of it (options, shape, layout, estimate) imports the standard library alone.
"""
