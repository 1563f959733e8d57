"""What the agent can do: tasks, tools and environments.

No torch, and nothing else of ours, is imported here.
"""
