package transfer

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// wholeCrowd and partCrowd are how many peers get one blob from this node at a time,
	// if it has all of it or fetches it itself. Others are told of these and come back: a
	// node that serves few serves them soon enough for them to pass on what they got,
	// while a thousand at once would all wait for their first piece. Just above
	// maxSuppliers, so that all who fetch have somebody to give to.
	wholeCrowd = 24
	partCrowd  = 14
	// roomTime is how long nobody may have been sent anything before one more is let in:
	// those that are in don't take what there is.
	roomTime = 200 * time.Millisecond
	// hardCrowd bounds the exceptions.
	hardCrowd = 256
	// lingerTime is how long peers are told of one that has just gone: most go because
	// they have got everything, and are the best to ask. So are those sent away.
	lingerTime = 30 * time.Second
	maxGone    = 4096
	// firstTold and lastTold are the pauses between the times a peer is told of others;
	// each is twice the one before.
	firstTold = 5 * time.Millisecond
	lastTold  = 10 * time.Second
	// someTold is how many others a peer is told of at a time: a thousand that are sent
	// away by one node shall not fill its link with names.
	someTold = 16
	// maxTold is how many others a peer is told of in a session.
	maxTold = 256
)

// served is what the sessions for one blob share.
type served struct {
	sent     []uint32 // how often each piece was sent
	sessions int
	lastSent time.Time            // when something was last sent, or one more let in
	fetching map[string]int       // peers that pass on what they get, with their sessions
	gone     map[string]time.Time // when they went

	summing sync.Mutex // held while sums is made; not with Peers.mu
	sums    []byte     // of the pieces, as in a sums frame; nil until asked for
}

// enter adds a session to those of its blob, if there is room.
func (p *Peers) enter(w want, peer string, pieces int) (b *served, room bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b = p.served[w.digest]
	if b == nil || len(b.sent) != pieces {
		b = &served{sent: make([]uint32, pieces), fetching: map[string]int{}, gone: map[string]time.Time{}}
		p.served[w.digest] = b
	}
	most := wholeCrowd
	if p.fetches[w.digest] != nil {
		most = partCrowd
	}
	if w.fetching && b.sessions >= most {
		if b.sessions >= hardCrowd || time.Since(b.lastSent) < roomTime {
			b.remember(peer)
			return b, false
		}
		b.lastSent = time.Now()
	}
	if b.sessions == 0 {
		b.lastSent = time.Now()
	}
	b.sessions++
	if w.fetching {
		b.fetching[peer]++
		delete(b.gone, peer)
		if f := p.fetches[w.digest]; f != nil && f.swarm != nil {
			f.swarm.hear(peer)
		}
	}
	return b, true
}

// remember notes a peer that fetches the blob and isn't served now.
func (b *served) remember(peer string) {
	if len(b.gone) >= maxGone {
		for id := range b.gone { // any
			delete(b.gone, id)
			break
		}
	}
	b.gone[peer] = time.Now()
}

func (p *Peers) leave(w want, peer string, b *served) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.fetching {
		if b.fetching[peer]--; b.fetching[peer] == 0 {
			delete(b.fetching, peer)
			b.remember(peer)
		}
	}
	if b.sessions--; b.sessions == 0 && p.served[w.digest] == b {
		delete(p.served, w.digest)
	}
}

// others are up to n peers that fetch the blob and aren't known yet, by chance. They are
// known then.
func (p *Peers) others(b *served, n int, except string, known map[string]bool) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for id, at := range b.gone {
		if time.Since(at) > lingerTime {
			delete(b.gone, id)
		} else if id != except && !known[id] {
			ids = append(ids, id)
		}
	}
	for id := range b.fetching {
		if id != except && !known[id] {
			ids = append(ids, id)
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	ids = ids[:min(len(ids), n)]
	for _, id := range ids {
		known[id] = true
	}
	return ids
}

// atWork notes that this node sends to those it has let in.
func (p *Peers) atWork(b *served) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.lastSent = time.Now()
}

// pick chooses the piece least sent so far of those in both sets, and not in a third;
// of equals the first, so that those who fetch alone get their blob in order. The choice
// counts as sent.
func (p *Peers) pick(b *served, wanted, have, given bitmap) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for i, n := range b.sent {
		if wanted.has(i) && (have == nil || have.has(i)) && !given.has(i) && (best < 0 || n < b.sent[best]) {
			best = i
		}
	}
	if best < 0 {
		return 0, false
	}
	b.sent[best]++
	return best, true
}

// tellOthers tells the peer of others that fetch the blob.
func (s *session) tellOthers(told map[string]bool) error {
	n := min(someTold, maxTold-len(told))
	if !s.want.fetching || n <= 0 {
		return nil
	}
	ids := s.p.others(s.blob, n, s.peer, told)
	if len(ids) == 0 {
		return nil
	}
	return s.write(encodePeers(ids))
}

// sendAway ends a session for which there is no room, and says where there may be.
func (s *session) sendAway() error {
	if err := s.tellOthers(map[string]bool{}); err != nil {
		return err
	}
	return s.write(have{state: stateBusy}.encode())
}
