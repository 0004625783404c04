"""Segmentation of whole subjects and of new scans with trained networks."""
