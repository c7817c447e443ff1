"""Records of runs that nobody recorded: trained again, and held against every checkpoint that they saved."""
