// Command bench measures Shoal against what a user would pick instead, both in one run.
package main
