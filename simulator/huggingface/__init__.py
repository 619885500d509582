"""Parts of `simulator.hf_config.model_from_config`: keys, number formats, architectures."""
