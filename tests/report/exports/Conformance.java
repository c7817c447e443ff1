import java.io.FileInputStream;
import org.verapdf.gf.foundry.VeraGreenfieldFoundryProvider;
import org.verapdf.pdfa.Foundries;
import org.verapdf.pdfa.flavours.PDFAFlavour;

/** Prints every rule of PDF/A-3a and PDF/UA-1 that the named files break; `test_verapdf.py` runs it. */
class Conformance {
    public static void main(String[] files) throws Exception {
        VeraGreenfieldFoundryProvider.initialise();
        var foundry = Foundries.defaultInstance();
        for (var file : files)
            for (var flavour : new PDFAFlavour[] {PDFAFlavour.PDFA_3_A, PDFAFlavour.PDFUA_1})
                try (var stream = new FileInputStream(file);
                        var parser = foundry.createParser(stream, flavour);
                        var validator = foundry.createValidator(flavour, false)) {
                    var result = validator.validate(parser);
                    System.out.println(file + " " + flavour + (result.isCompliant() ? " passes" : " fails"));
                    for (var failed : result.getTestAssertions())
                        System.out.println("  " + failed.getRuleId().getClause() + " " + failed.getMessage()
                                + " @ " + failed.getLocation().getContext());
                }
    }
}
