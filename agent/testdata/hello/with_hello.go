// SPDX-License-Identifier: Apache-2.0

//go:build !no_hello

package main

import _ "droidtap/agent/probe/hello"
