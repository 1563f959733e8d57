"""How the policy learns: batches, advantages, losses, the learner and weight sync."""

from rollout.versions import check_versions

check_versions()
