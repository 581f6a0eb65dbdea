// Package apitest is the contract of an engine as tests: one suite that every engine must pass, and Fake, an engine in memory.
package apitest
