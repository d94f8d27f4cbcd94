module guildhall/complement

go 1.24
