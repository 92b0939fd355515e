"""Attention maps: recording them in one pass of the UNet, and combining them."""
