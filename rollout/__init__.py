"""How experience is made: engines, agents, trajectories."""

from rollout.versions import check_versions

check_versions()
