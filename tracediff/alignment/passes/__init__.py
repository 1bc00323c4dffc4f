"""The passes that pair sites, by job. `tracediff.alignment.sites.PASSES` says in which order they run."""
