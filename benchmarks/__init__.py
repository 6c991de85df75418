"""Luthier's speed and memory against the tutorial's script and the peers, on one machine in one run.

python start.py bench --help
"""
