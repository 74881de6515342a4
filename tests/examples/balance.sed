s/^without a lock: -*[0-9]*/without a lock: N/
