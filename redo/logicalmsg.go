package redo

// logicalMessageManager's record is for logical decoding only (logicalmsg_redo).
var logicalMessageManager = manager{name: names{"MESSAGE"}.of}
