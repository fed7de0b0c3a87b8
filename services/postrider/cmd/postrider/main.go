// Command postrider is the command line of postrider, and all of its services
// in one process for development: postrider dev.
package main

import (
	"os"

	"github.com/postrider/postrider/services/postrider"
)

func main() { os.Exit(postrider.Main()) }
