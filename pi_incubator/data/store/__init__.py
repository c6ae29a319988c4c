"""Trajectories of many runs and robots in LanceDB, on a disk or in S3: to filter, search and learn from."""
