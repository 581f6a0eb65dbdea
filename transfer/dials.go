package transfer

import (
	"net"
	"sync"
)

// dials are attempts to reach one of several peers, the first ones preferred. One
// goroutine uses them.
type dials struct {
	dial    func(i int) (net.Conn, error)
	results chan dialed // to be given to took
	conns   []net.Conn
	failed  []bool
	begun   int
	wg      sync.WaitGroup
}

type dialed struct {
	i    int
	conn net.Conn
	err  error
}

func newDials(n int, dial func(i int) (net.Conn, error)) *dials {
	return &dials{dial: dial, results: make(chan dialed, n), conns: make([]net.Conn, n), failed: make([]bool, n)}
}

// next begins one more attempt, if there is one.
func (d *dials) next() {
	if d.begun == len(d.conns) {
		return
	}
	i := d.begun
	d.begun++
	d.wg.Go(func() {
		conn, err := d.dial(i)
		d.results <- dialed{i, conn, err}
	})
}

func (d *dials) took(r dialed) { d.conns[r.i], d.failed[r.i] = r.conn, r.err != nil }

// best takes the connection to the first peer if all before it have failed. It says
// which peer has to be waited for if there is none; as many as there are, if all failed.
func (d *dials) best() (int, net.Conn) {
	for i, conn := range d.conns {
		if !d.failed[i] {
			d.conns[i] = nil
			return i, conn
		}
	}
	return len(d.conns), nil
}

// hangUp waits for the attempts under way and ends all connections but the one taken.
func (d *dials) hangUp() {
	d.wg.Wait()
	close(d.results)
	for r := range d.results {
		d.took(r)
	}
	for _, conn := range d.conns {
		if conn != nil {
			conn.Close()
		}
	}
}
