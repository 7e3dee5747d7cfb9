"""How a normalisation is computed: the definition (`reference`) and the ways that are fast."""
