"""Facts about any torch network that several packages need: names, layer types, output heads, eval mode."""
