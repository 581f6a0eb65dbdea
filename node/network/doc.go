// Package network connects the containers of one host with each other, with the host and with other hosts' containers.
//
// On the host there is one bridge with the gateway's address, one nftables table
// (inet shoal-SCOPE) and, once the node has peers, one VXLAN device. A container
// has a network namespace, pinned by a bind mount, with one veth pair to the bridge.
//
// On disk, below Config.Root:
//
//	endpoints/ID.json   one per container: what Connect made (see record)
//	ipam.json           where the search for the next free address starts
//	overlay.json        the last routes and forwards, so that a new agent
//	                    replaces the rules of the one before without a gap
//
// and below Config.RunDir:
//
//	NAME                a pinned network namespace; NAME is random because a
//	                    namespace is made before it is known whose it will be
//
// Nothing on disk is worth more than the namespaces it describes, which a reboot
// ends, so files are replaced atomically but never synced.
//
// Locks, in the order they are taken: the lock of a container's ID, Network.kernel,
// Network.mu.
package network
