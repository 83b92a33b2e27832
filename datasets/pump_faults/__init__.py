"""The embedded example table: simulated readings of pumps, with four faults."""
