"""What a task for any robot makes of a scene before it runs: a start pose, a floor, noise on the start."""
