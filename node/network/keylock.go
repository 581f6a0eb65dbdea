package network

import "sync"

// keyLock is a lock per key. Its zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*keyHold
}

type keyHold struct {
	mu    sync.Mutex
	users int // that hold it or wait; at 0 the entry goes
}

// lock takes a key's lock and returns what gives it back.
func (k *keyLock) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyHold{}
	}
	h := k.held[key]
	if h == nil {
		h = &keyHold{}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()
	h.mu.Lock()
	return func() {
		h.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(k.held, key)
		}
	}
}
