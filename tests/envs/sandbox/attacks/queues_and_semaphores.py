"""Leave a word in a queue, a semaphore or a segment that outlives us."""

refused("mq_open", 240, b"escaped", 0o102, 0o600, None)
refused("mq_unlink", 241, b"escaped")
refused("msgget", 68, 4711, 0o1600)
refused("msgsnd", 69, 0, None, 0, 0)
refused("semget", 64, 4711, 1, 0o1600)
refused("semop", 65, 0, None, 0)
refused("semtimedop", 220, 0, None, 0, None)
refused("shmctl", 31, 0, 0, None)
