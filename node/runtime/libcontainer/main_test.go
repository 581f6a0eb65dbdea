package libcontainer_test

import (
	"os"
	"testing"

	"github.com/shoal-engine/shoal/node/supervisor"
)

func TestMain(m *testing.M) {
	if supervisor.IsChild(os.Args) {
		supervisor.Main()
	}
	os.Exit(m.Run())
}
