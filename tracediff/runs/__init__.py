"""What executes models: a run captured, forced, measured for noise, searched live, one site tried, a part served from a trace."""
