"""Everything that speaks Ray while a run is at work: the cluster, its actors, small tasks, metrics."""
