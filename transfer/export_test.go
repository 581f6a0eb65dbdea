package transfer

// DeskOrder is deskOrder.
var DeskOrder = deskOrder
