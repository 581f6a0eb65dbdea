// Package pace keeps streams within a rate that they share.
//
// Whoever waits longest isn't served first: each peer has its turn, however many streams
// it has. What is small passes at once and is made up for by what follows, so that
// requests and news don't queue behind content.
package pace
