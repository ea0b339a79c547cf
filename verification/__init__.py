"""Comparison of fpmace with reference numbers of earlier codes; see scripts/verify_golden.py."""
