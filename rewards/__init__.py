"""How well it did: rewards are functions of an episode."""
