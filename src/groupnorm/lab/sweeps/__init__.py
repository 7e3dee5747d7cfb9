"""Many trials: what is asked for, who trains them, and the progress shown meanwhile."""
