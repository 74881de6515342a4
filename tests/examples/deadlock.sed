s/^Thread-A waits for lock 'b' held by Thread-B, which waits for lock 'a' held by Thread-A$/X waits for lock 'x' held by Y, which waits for lock 'y' held by X/
s/^Thread-B waits for lock 'a' held by Thread-A, which waits for lock 'b' held by Thread-B$/X waits for lock 'x' held by Y, which waits for lock 'y' held by X/
