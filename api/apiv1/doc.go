// Package apiv1 says what an engine is: the roles, options, streams and error classes of version 1 of the contract.
package apiv1
