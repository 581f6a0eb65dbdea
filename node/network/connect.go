package network

import (
	"context"
	"errors"
	"net"
	"slices"

	mobynet "github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

// Connect implements node.Networker. It waits for the first Setup.
func (n *Network) Connect(ctx context.Context, r Request) (Endpoint, error) {
	if err := check(&r); err != nil {
		return Endpoint{}, err
	}
	select {
	case <-n.ready:
	case <-ctx.Done():
		return Endpoint{}, ctx.Err()
	}
	unlock := n.ids.lock(r.ContainerID)
	defer unlock()
	if err := n.disconnect(r.ContainerID); err != nil {
		return Endpoint{}, err
	}
	if err := ctx.Err(); err != nil {
		return Endpoint{}, err
	}
	rec := record{ContainerID: r.ContainerID, Mode: r.Mode, EndpointID: randomID(32)}
	if r.Mode == modeNone {
		return n.connectNone(rec)
	}
	return n.connectBridge(r, rec)
}

// check refuses requests that can't be met and fills in what is implied.
func check(r *Request) error {
	if !fileName.MatchString(r.ContainerID) {
		return api.InvalidArgument("invalid container ID %q", r.ContainerID)
	}
	switch r.Mode {
	case "", "default", modeBridge:
		r.Mode = modeBridge
	case modeNone:
		r.Ports = nil // Docker ignores them, too
		return nil
	default:
		return api.NotFound("network %s not found", r.Mode)
	}
	if r.MAC != nil && (len(r.MAC) != 6 || r.MAC[0]&1 != 0) {
		return api.InvalidArgument("invalid MAC address: %s", r.MAC)
	}
	r.Ports = slices.Clone(r.Ports)
	for i := range r.Ports {
		p := &r.Ports[i]
		if p.Proto == "" {
			p.Proto = mobynet.TCP
		}
		p.HostIP = p.HostIP.Unmap()
		if err := checkPublish(*p); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) connectNone(rec record) (Endpoint, error) {
	rec.Netns = randomID(16)
	n.mu.Lock()
	n.waiting++
	n.mu.Unlock()
	err := n.makeNetns(rec.Netns, nil)
	if err == nil {
		err = n.enter(rec)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting--
	if err != nil {
		n.warn("namespace stays", unpin(n.netnsPath(rec.Netns)))
		return Endpoint{}, err
	}
	return n.endpoint(rec), nil
}

func (n *Network) connectBridge(r Request, rec record) (Endpoint, error) {
	var p prepared
	var err error
	if r.Address.IsValid() || r.MAC != nil {
		p, err = n.prepare(r.Address, r.MAC)
	} else {
		p, err = n.take()
	}
	if err != nil {
		return Endpoint{}, err
	}
	rec.Netns, rec.Link, rec.Address, rec.Gateway, rec.MAC = p.netns, p.link, p.address, p.gateway, p.mac.String()
	if err := n.publish(r, &rec); err != nil {
		n.warn("namespace stays", n.discard(p))
		return Endpoint{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.endpoint(rec), nil
}

// publish claims the ports, notes the endpoint and opens the ports; or does nothing.
func (n *Network) publish(r Request, rec *record) error {
	n.mu.Lock()
	ports, displaced, err := n.claims.claim(r.ContainerID, r.Ports)
	if err != nil && len(displaced) > 0 {
		n.claimForwards()
	}
	n.mu.Unlock()
	if err != nil {
		name := r.Name
		if name == "" {
			name = r.ContainerID
		}
		return api.Internal("driver failed programming external connectivity on endpoint %s (%s): %w", name, rec.EndpointID, err)
	}
	rec.setPublishes(ports)
	err = n.enter(*rec)
	if err == nil && n.stray(*rec) { // the subnet changed meanwhile
		n.kernel.Lock()
		err = errors.Join(n.syncDevices(), n.syncTable())
		n.kernel.Unlock()
	}
	if err == nil && len(ports) > 0 {
		err = n.resync(ports)
	}
	if err != nil {
		n.warn("network state is not undone", n.withdraw(rec.ContainerID))
		return api.Internal("publish ports of container %s: %w", rec.ContainerID, err)
	}
	return nil
}

// enter notes an endpoint, on disk first: what is on disk but nowhere else is cleaned.
func (n *Network) enter(rec record) error {
	if err := n.store.saveEndpoint(rec); err != nil {
		return err
	}
	n.mu.Lock()
	n.endpoints[rec.ContainerID] = rec
	n.mu.Unlock()
	return nil
}

// withdraw forgets an endpoint and closes its ports.
func (n *Network) withdraw(id string) error {
	n.mu.Lock()
	rec := n.endpoints[id]
	delete(n.endpoints, id)
	n.claims.release(id)
	ports := rec.publishes()
	if len(ports) > 0 {
		n.claimForwards()
	}
	n.mu.Unlock()
	if len(ports) > 0 {
		if err := n.resync(ports); err != nil {
			return err
		}
	}
	return n.store.removeEndpoint(id)
}

// resync brings the kernel's rules up to date after a change to ports.
func (n *Network) resync(changed []Publish) error {
	n.kernel.Lock()
	err := n.syncTable()
	n.kernel.Unlock()
	if err == nil {
		n.forgetFlows(changed)
	}
	return err
}

// Disconnect implements node.Networker.
func (n *Network) Disconnect(ctx context.Context, containerID string) error {
	select {
	case <-n.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	unlock := n.ids.lock(containerID)
	defer unlock()
	return n.disconnect(containerID)
}

// disconnect undoes a Connect as far as it got. Caller holds the container's lock.
func (n *Network) disconnect(id string) error {
	n.mu.Lock()
	rec, ok := n.endpoints[id]
	n.mu.Unlock()
	if !ok {
		return nil
	}
	if err := n.dissolve(rec.Netns, rec.Link); err != nil {
		return api.Internal("disconnect container %s: %w", id, err)
	}
	if err := n.withdraw(id); err != nil {
		return api.Internal("disconnect container %s: %w", id, err)
	}
	if rec.Mode != modeBridge {
		return nil
	}
	n.mu.Lock()
	if n.ipam != nil {
		n.ipam.release(rec.Address.Addr())
	}
	n.mu.Unlock()
	if n.stray(rec) {
		n.kernel.Lock()
		defer n.kernel.Unlock()
		if n.Degraded() == nil {
			n.warn("an old address stays on the bridge", n.syncDevices())
		}
	}
	return nil
}

// stray reports whether an endpoint's address is of a subnet of before.
func (n *Network) stray(rec record) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return rec.Mode == modeBridge && !n.subnet.Contains(rec.Address.Addr())
}

// Endpoint implements node.Networker.
func (n *Network) Endpoint(containerID string) (Endpoint, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	rec, ok := n.endpoints[containerID]
	if !ok {
		return Endpoint{}, false
	}
	return n.endpoint(rec), true
}

// endpoint is a record as others see it. Caller holds mu.
func (n *Network) endpoint(rec record) Endpoint {
	e := Endpoint{EndpointID: rec.EndpointID, NetnsPath: n.netnsPath(rec.Netns)}
	if rec.Mode != modeBridge {
		return e
	}
	e.NetworkID, e.Address, e.Gateway, e.Ports = n.id(), rec.Address, rec.Gateway, rec.publishes()
	e.MAC, _ = net.ParseMAC(rec.MAC) // checked when it was read
	if e.DNS = slices.Clone(n.cfg.DNS); len(e.DNS) == 0 {
		e.DNS = append(e.DNS, rec.Gateway)
	}
	return e
}
