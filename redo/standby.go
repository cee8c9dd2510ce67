package redo

// standbyManager's records serve hot standby only; none changes what is kept (standbydefs.h, standby_redo).
var standbyManager = manager{name: names{"LOCK", "RUNNING_XACTS", "INVALIDATIONS"}.of}
