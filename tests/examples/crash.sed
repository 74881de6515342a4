s/crashed: -*[0-9]*/crashed: N/
