package node

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/shoal-engine/shoal/api/listing"
)

// index finds containers by ID, prefix of an ID, or name.
type index struct {
	mu    sync.RWMutex
	byID  map[string]*ctr
	names map[string]string // name -> ID; a name is claimed before its container exists
}

func newIndex() *index {
	return &index{byID: map[string]*ctr{}, names: map[string]string{}}
}

// claim takes a name for a container, or says with Docker's text who has it.
func (x *index) claim(name, id string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if owner, taken := x.names[name]; taken && owner != id {
		return listing.NameTaken(name, owner)
	}
	x.names[name] = id
	return nil
}

// has says whether there is a container of that ID.
func (x *index) has(id string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byID[id] != nil
}

// unclaim gives a name back if that container has it.
func (x *index) unclaim(name, id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.names[name] == id {
		delete(x.names, name)
	}
}

func (x *index) add(c *ctr) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byID[c.id] = c
}

// remove forgets a container and its name.
func (x *index) remove(id, name string) {
	x.unclaim(name, id)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byID, id)
}

// all lists the containers in no order.
func (x *index) all() []*ctr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	cs := make([]*ctr, 0, len(x.byID))
	for _, c := range x.byID {
		cs = append(cs, c)
	}
	return cs
}

// find takes a full ID, a name with or without its slash, or an unambiguous
// prefix of an ID; in that order, as Docker does.
func (x *index) find(ref string) (*ctr, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.byID[ref]; c != nil {
		return c, nil
	}
	if c := x.byID[x.names[strings.TrimPrefix(ref, "/")]]; c != nil {
		return c, nil
	}
	id, err := listing.Resolve(ref, func(yield func(id, name string) bool) {
		for id := range x.byID {
			if !yield(id, "") {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return x.byID[id], nil
}

var idForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func validID(id string) bool { return idForm.MatchString(id) }

// newID makes up an ID of so many hexadecimal digits. One that is a number alone
// is not taken: as a host name it could be mistaken for an address.
func newID(digits int) string {
	b := make([]byte, digits/2)
	for {
		rand.Read(b)
		id := hex.EncodeToString(b)
		if slices.ContainsFunc([]byte(id[:min(12, digits)]), func(c byte) bool { return c >= 'a' }) {
			return id
		}
	}
}
