// Package slack says how late the timers of this process's threads may be.
package slack
