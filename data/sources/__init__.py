"""Readers of scans as they come: each gives `data.layout.Case`s."""
