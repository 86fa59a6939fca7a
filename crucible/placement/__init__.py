"""Where a job runs, and when it moves: candidates, deadlines, queues."""
