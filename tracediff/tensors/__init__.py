"""Tensors apart from any trace or model: how array files hold them (`files`), and when one is a merged weight norm (`weight_norm`)."""
