package supervisor

// Running is a client that starts nothing: where no supervisor runs, calls are
// Unavailable and Shutdown has nothing to do.
func Running(c Config) *Client { return &Client{config: c.complete()} }
