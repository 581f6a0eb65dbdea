// Package lb keeps a load balancer's configuration file in step with the tags of containers.
//
// A container asks for traffic with its tags (labels at creation, editable later):
//
//	lb.host    host names, separated by commas; "*.example.org" matches one or
//	           more labels in front; absent or "*" means every host
//	lb.path    path prefix, of whole segments: "/api" is /api and /api/…; "/" if absent
//	lb.port    the container's port that serves; may be left out if it declares
//	           exactly one TCP port
//	lb.weight  0 to 256, 1 if absent
//	lb.drain   "true": no new work, while what is under way may finish
//
// Either lb.host, lb.path or lb.port makes a container part of it. All containers
// with the same host and path are the servers of one route. Only running, healthy
// ones on nodes that are reached are listed; a route whose containers are all
// away stays, without servers, so that its requests get a clear 503 and are not
// taken by a wider route. A tag that can't be used is left out and reported.
//
// # Templates
//
// A text/template turns the model into the file. Its data is Model; besides the
// language's own functions it has
//
//	param NAME DEFAULT  a parameter that the operator set, else DEFAULT
//	word VALUE          VALUE, if it has only letters, digits and . _ : / @ % + -, else an error
//	quote VALUE         VALUE in double quotes, with \ " $ and ` escaped
//	join SEPARATOR LIST the strings of LIST in one
//
// No string of the model holds a control character, so no value can begin a line
// of its own. Host, Path and every Name are safe as bare words; the values of
// Tags are whatever users wrote: pass them through word or quote.
//
// # Commands
//
// Check and Reload are run by sh -c with the variable FILE set to the path of the
// file: a draft for Check, the real one for Reload. So: haproxy -c -f "$FILE".
package lb
