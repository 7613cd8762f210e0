"""What `benchmarks/against_peers.py` is made of: ours and a peer on the same work, each in a process of its own."""
