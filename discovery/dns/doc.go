// Package dns answers the names of containers, nodes and tags from the catalog and passes every other name on.
//
// Names below the cluster's domain, here "shoal", in upper or lower case:
//
//	NAME, NAME.shoal            a running container, by name, by the first 12 digits
//	                            of its ID, or by an alias; also before it is healthy,
//	                            as with Docker
//	KEY.VALUE.tag.shoal         the running, healthy containers with the tag KEY=VALUE
//	NODE.node.shoal             a node's address
//	_PORT._tcp.X, _PORT._udp.X  SRV: where that port of X is served; X is one of the
//	                            names of containers or tags above
//	X                           SRV: every port of X
//
// Dots in a tag's key or value separate labels, letters become lower case, and
// everything else but digits, '-' and '_' becomes '-': com.example.tier=Gold_1 is
// com.example.tier.gold_1.tag.shoal. Tags that read alike share one name; a tag
// with an empty value is KEY.tag.shoal; one that doesn't fit into a name has none.
//
// An SRV record of a published port leads to NODE.node.shoal and the port there,
// so that anybody can use it; any other leads to the container's own address.
// Addresses lead back to names by PTR.
//
// Answers have a TTL of 0 and come in random order. What stops, or is on a node
// that can't be reached, is gone with the catalog's next view. Unknown names below
// the domain, and addresses of the container network that nobody has, do not
// exist (NXDOMAIN); any other question is asked upstream.
package dns
